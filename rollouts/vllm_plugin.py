"""The plugin that vLLM loads in each of its processes (entry point `vllm.general_plugins`) to know `sailvl` folders."""

ARCHITECTURE = "SAILVLModel"  # as in the published config.json
BACKEND = "sailvl2"  # name of our weight transfer


def register() -> None:
    """Tell vLLM the model and how weights come to it. It may be called any number of times."""
    from vllm import ModelRegistry
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    import model.hf_processor  # noqa: F401  (tells the Auto classes our configuration and processor)

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "rollouts.vllm_model:SailVL2ForVllm")
    # The registry refuses a second registration, and has no method that asks for the first.
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "rollouts.vllm_transfer", "HandleTransfer")
