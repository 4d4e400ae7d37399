"""Clips into frames.

In: a `Clip` of the manifest (a file or a folder of frames, or a span of one), and a `FrameSpec`: which moments,
which size, how to find faces. Out: `FrameChunk`s of uint8 pictures with their times, or one error that says what is
wrong with the file.

Open `reader` first: it reads one clip. `decoding` chooses frames and decodes them: `containers` opens files, `packets`
proves that decord may read one, `display` shows frames as players do, `pictures` reads folders of pictures. `faces` and
`tracks` find and follow a face, `preprocessing` resizes frames, `augmentation` changes them, `reader_process` runs it
all in a child process under deadlines.
"""
