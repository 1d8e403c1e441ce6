"""The bundled model for photographs: pretrained parts, data, training and measurement."""
