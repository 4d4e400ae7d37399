class Jobs:
    def __init__(self,*a,**k): pass
