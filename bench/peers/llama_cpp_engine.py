"""llama.cpp (pip install llama-cpp-python) as an engine; LLAMA_CPP_LIB_PATH names the directory of another build of its library."""

import ctypes

from engine import peak_mib, serve

_CONTEXT = 2048


class LlamaCpp:
    """settings: weights (a .gguf), threads."""

    def __init__(self, settings):
        import llama_cpp

        self.c = llama_cpp
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(settings["weights"].encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise OSError(f"llama.cpp does not load {settings['weights']}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = _CONTEXT
        parameters.n_ubatch, parameters.n_threads, parameters.n_threads_batch = 512, settings["threads"], settings["threads"]
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def _begin(self):
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)

    def _read(self, ids):
        array = (self.c.llama_token * len(ids))(*ids)
        if self.c.llama_decode(self.context, self.c.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")

    def logits(self, ids):
        self.prefill(ids)
        found = self.c.llama_get_logits_ith(self.context, -1)
        return list(ctypes.cast(found, ctypes.POINTER(ctypes.c_float * self.size)).contents)

    def prefill(self, ids):
        self._begin()
        self._read(ids)

    def decode(self, ids):
        self._begin()
        for token in ids:
            self._read([token])

    def quantize(self, source, target, kind):
        """Writes a GGUF file in another format of weights; kind: the name of a llama_ftype behind LLAMA_FTYPE_MOSTLY_."""
        parameters = self.c.llama_model_quantize_default_params()
        parameters.ftype = getattr(self.c, f"LLAMA_FTYPE_MOSTLY_{kind}")
        if self.c.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)):
            raise RuntimeError(f"llama.cpp does not quantize to {kind}")

    def peak(self):
        return peak_mib()


if __name__ == "__main__":
    serve(LlamaCpp)
