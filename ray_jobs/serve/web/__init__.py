"""The web side of the server, without PyTorch: an HTTP request in, JSON or a file of the page out.

Open `app` first: it lists the routes. `schemas` says what they answer, `forms` what they take; `replica` puts all
together. `server` and `connections` listen; `door`, `gate`, `keys` and `rates` decide who may ask; `uploads` and
`spool` stream what comes in to files; `pipeline` asks the deployments behind, as `asked` describes. `jobs` personalizes
in the background, `live` looks at frames, `interface` answers pages of other sites, `annotated_videos` keeps what they
play. `readiness`, `metrics`, `access_log` and `fault_log` tell how it goes.
"""
