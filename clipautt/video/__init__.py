"""Clips into frames.

In: a `Clip` of the manifest (a file or a folder of frames, perhaps a span of it), and a `FrameSpec`: which moments,
which size, which faces. Out: `FrameChunk`s of uint8 pictures with their times, or one error that says what is wrong
with the file.

Open `reader` first: it reads one clip. `decoding` opens files, `faces` and `tracks` find and follow a face,
`preprocessing` sizes pictures, `augmentation` changes them, `reader_process` runs it all under deadlines in a process
of its own.
"""
