"""How one model is trained: in one process, on every rank (DDP), or spread over them (FSDP2, ZeRO); its optimizer and precision."""
