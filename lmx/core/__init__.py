"""Layer 0: types, config tools, storage, logging. Nothing here touches a device or the disk at import."""
