"""The deployments behind the web side: `decoders` turn a file into frames, `encoder` turns frames into answers.

Open `encoder` first. `subjects` finds and erases what is kept of people, in files that `stored` and `remembered`
describe; `personalized` makes it, `tuned` adapts for one request, `live` looks at one frame. `answers` makes plain
values of predictions, `annotated` a video; `check` is what every replica has to do before it counts.
"""
