"""One file per learned baseline: each fits what its source describes, on training events alone."""
