"""Which families of models can be exported for a task: what `check` refuses by, and what the exporter was proved on."""

# By `model_type` of config.json. An empty list: any that transformers has a head for; parity decides.
FAMILIES: dict[str, tuple[str, ...]] = {
    "text-classification": (),
    "token-classification": (),
    "question-answering": (),
    "embeddings": (),
    "image-classification": (),
    "audio-classification": ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio"),
    "text-generation": (
        "ernie4_5", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "nemotron",
        "olmo", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2",
    ),
    "translation": ("marian", "t5"),
    "summarisation": ("t5", "bart"),
    "speech-recognition": (
        "whisper", "wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio",
    ),
}  # fmt: skip
# The mappings of transformers that hold the classes with the task's head.
HEADS: dict[str, tuple[str, ...]] = {
    "text-classification": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",),
    "token-classification": ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",),
    "question-answering": ("MODEL_FOR_QUESTION_ANSWERING_MAPPING",),
    "embeddings": ("MODEL_MAPPING",),
    "image-classification": ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",),
    "audio-classification": ("MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING",),
    "text-generation": ("MODEL_FOR_CAUSAL_LM_MAPPING",),
    "translation": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",),
    "summarisation": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",),
    "speech-recognition": ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING", "MODEL_FOR_CTC_MAPPING"),
}
