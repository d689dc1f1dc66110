"""How anything is written: durable files, whole folders, one commit on the Hub, cards."""
