from .style import *
