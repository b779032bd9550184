"""Engines that answer in one pass: texts, pictures and sounds in, labels, spans and vectors out."""
