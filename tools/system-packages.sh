#!/bin/sh
# Install what pip cannot: Debian packages, as root, if they are missing.
# Without root, say loudly what is missing and go on: the tests that need it are left out.
set -eu

install() {
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    else
        echo "MISSING: $* (install it with your package manager)" >&2
    fi
}

case "$1" in
python)
    "${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null || install python3-venv
    ;;
mosquitto)
    if ! command -v mosquitto >/dev/null && [ ! -x /usr/sbin/mosquitto ]; then
        install mosquitto
        # The package starts a broker of its own; the tests start theirs.
        if [ -d /run/systemd/system ]; then systemctl disable --now mosquitto || true; fi
    fi
    ;;
*)
    echo "usage: $0 python|mosquitto" >&2
    exit 2
    ;;
esac
