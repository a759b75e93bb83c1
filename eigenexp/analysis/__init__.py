"""What pairs mean: units of discriminability, finite amplitudes."""
