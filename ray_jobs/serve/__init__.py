"""The serve job: a checkpoint in, an HTTP service and a page out, on Ray Serve.

Open `job` first; `ingress` and `web` are the HTTP side, `uploads` the limits of what comes in, `answers` what goes out,
`page` the files of the page.
"""
