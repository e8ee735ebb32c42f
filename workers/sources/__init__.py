"""Providers of prices and of other series, one file each. `protocol` says what a source is, `registry` finds them."""
