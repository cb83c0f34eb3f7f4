"""What vLLM loads in each of its processes (entry point `vllm.general_plugins`): it then knows `sailvl` folders."""

ARCHITECTURE = "SAILVLModel"  # as in the published config.json
BACKEND = "sailvl2"  # of the weight transfer


def register() -> None:
    """Tell vLLM the model and how weights come to it; may be called any number of times."""
    from vllm import ModelRegistry
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    import model.hf_processor  # noqa: F401  (the Auto classes then know configuration and processor)

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "rollouts.vllm_model:SailVL2ForVllm")
    # Its registry has no question to ask, and refuses a second registration.
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "rollouts.vllm_transfer", "HandleTransfer")
