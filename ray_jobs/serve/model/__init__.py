"""The deployments behind the web side: `decoders` turn a file into frames, `encoder` turns frames into answers.

Open `encoder` first. `subjects` keeps what is known of people, `answers` makes plain values of predictions.
"""
