"""Row 5: a trained model put to use: from the shell, in a chat, over HTTP."""
