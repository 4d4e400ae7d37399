"""The serve job: a checkpoint in, an HTTP service and a page out, on Ray Serve.

Open `job` first, then `application`, which connects three deployments: the classes in `web` listen and answer, those in
`model` decode and encode. `page` has the files of the page; `refusals` lists every reason why a request gets no answer.
"""
