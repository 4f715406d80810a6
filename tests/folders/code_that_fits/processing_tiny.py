from sound_files_that_are_not_installed import read
from transformers import ProcessorMixin


class TinyProcessor(ProcessorMixin):
    attributes = ()

    def __call__(self, path):
        return read(path)
