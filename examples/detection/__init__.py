"""A detector of scenes composed of drawings, whose new classes come with entries alone: its data, measures, card."""
