"""The engine MXNet: recording, forms, planning and verifying of symbols."""
