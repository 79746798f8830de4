"""Engines that record, plan, train and measure a step, and what they share."""
