#!/bin/sh
exec "${OCIVISOR_BIN:-/usr/bin/ocivisor}" one script "$0" "$@"
