"""How the nearest of many vectors are found, exactly or nearly."""
