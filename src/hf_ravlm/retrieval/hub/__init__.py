"""Knowledge bases on the Hub: download, upload, card."""
