"""The web side of the server, without PyTorch: an HTTP request in, JSON or a file of the page out.

Open `app` first: it lists the routes. `schemas` says what is answered, `refusals` what is answered instead. `door`,
`keys` and `rates` decide who may ask; `uploads` streams what comes in to files; `pipeline` asks the deployments that
decode and encode.
"""
