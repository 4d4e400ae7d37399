import asyncio


class AnnotatedVideos:
    def __init__(self, *a, **k):
        pass

    async def sweep(self):
        await asyncio.sleep(1e9)
