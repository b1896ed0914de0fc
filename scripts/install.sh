# shellcheck shell=bash
# What a Debian machine needs to build, try and test Casemate, put there once.
# Sourced by ./quickstart and ./test; the caller is at the root of the checkout.

# Built with: the compiler and libraries of the host's binaries, and of the guest's kernel.
BUILD_PACKAGES=(ca-certificates gcc make pkg-config binutils libseccomp-dev libcap-ng-dev
    bc bison flex libelf-dev patch xz-utils mmdebstrap)
# Run with: the VMM, a client, and what sets up networks and the names in them.
# shellcheck disable=SC2034 # used by the callers
RUN_PACKAGES=(qemu-system-x86 podman netavark aardvark-dns iproute2 iptables nftables)
# Tested and measured with, beside the above.
# shellcheck disable=SC2034 # used by the callers
TEST_PACKAGES=(
    runc           # to compare with
    crun           # to measure beside
    runsc          # to measure beside: gVisor
    buildah        # builds images, by the runtime
    catatonit      # is the first container of podman's pods
    shellcheck     # lints these scripts
    busybox-static # is in the containers of the agent's own tests and of the measurements
    iperf3         # loads networks
    containernetworking-plugins # makes the networks of containerd's pods
    e2fsprogs      # makes disks and looks into them
)

BINARY_FOLDER=/usr/local/bin
GUEST_FOLDER=/usr/local/lib/casemate
# A cold build keeps the kernel's objects, the crates' and two images at once.
DISK_NEEDED_MIB=8000

say() { printf '%s\n' "$*"; }

# die REASON [HINT]
die() {
    printf 'error: %s\n' "$1" >&2
    [ -z "${2-}" ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

# Runs a command as root.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi
}

require_debian() {
    local ID=unknown VERSION_ID=0 PRETTY_NAME=unknown
    # shellcheck disable=SC1091 # a file of the system
    [ ! -r /etc/os-release ] || . /etc/os-release
    # Testing and unstable have no number.
    if [ "$ID" != debian ] || [ "${VERSION_ID:-99}" -lt 12 ]; then
        die "this is $PRETTY_NAME; these scripts know Debian 12 and 13" \
            "scripts/install.sh lists the packages to install by hand"
    fi
    [ "$(uname -m)" = x86_64 ] || die "this is $(uname -m); only x86_64 is supported"
}

require_root() {
    [ "$(id -u)" = 0 ] && return
    command -v sudo >/dev/null ||
        die "needs root, for packages and to make virtual machines and networks" \
            "run it as root, or install sudo"
    sudo -v || die "sudo does not let $(id -un) become root"
}

# The cache outlives the checkout; whoever builds must be able to write it.
prepare_cache() {
    export CASEMATE_CACHE=${CASEMATE_CACHE:-/var/cache/casemate}
    [ -d "$CASEMATE_CACHE" ] && [ -w "$CASEMATE_CACHE" ] && return
    as_root install -d -o "$(id -u)" -g "$(id -g)" "$CASEMATE_CACHE" ||
        die "cannot make the cache $CASEMATE_CACHE" "set CASEMATE_CACHE to another folder"
}

# Only a cold build needs the room: with a kernel in the cache a tenth is enough.
require_disk() {
    local folder free needed=$DISK_NEEDED_MIB
    if compgen -G "$CASEMATE_CACHE/kernel/*/vmlinux" >/dev/null; then
        needed=$((needed / 10))
    fi
    for folder in "$CASEMATE_CACHE" .; do
        free=$(df --output=avail --block-size=1M "$folder" | tail -n 1)
        [ "$free" -ge "$needed" ] ||
            die "$folder has $((free)) MiB free; the build needs $needed MiB" \
                "free some space, or set CASEMATE_CACHE and CARGO_TARGET_DIR to another disk"
    done
}

# Prints those of the named packages that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
            printf '%s\n' "$package"
    done
}

# Installs what is missing of the named packages. Asks the archive only if something is.
install_packages() {
    local missing log
    mapfile -t missing < <(missing_packages "$@")
    [ "${#missing[@]}" -gt 0 ] || return 0
    say "installing: ${missing[*]}"
    log=$(mktemp)
    as_root apt-get update >"$log" 2>&1 || true
    if ! apt-cache show "${missing[@]}" >/dev/null 2>&1; then
        cat "$log" >&2
        explain_apt "$log" "the package archive does not offer all of: ${missing[*]}"
    fi
    if ! as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        explain_apt "$log" "apt-get could not install ${missing[*]}"
    fi
    rm -f "$log"
}

# explain_apt LOG REASON: ends with the reason that a person can act on.
explain_apt() {
    local log=$1 reason=$2
    if grep -qiE 'no space left|not enough free space|enough free space' "$log"; then
        die "the disk is full: $reason" "free some space in / and /var, then run this again"
    elif grep -qiE 'could not resolve|could not connect|failed to fetch|network is unreachable|temporary failure|connection (timed out|refused)' "$log"; then
        die "the package archive cannot be reached: $reason" \
            "check the network, the proxy and the lists in /etc/apt, then run this again"
    elif grep -qiE 'could not get lock|is another process using it' "$log"; then
        die "another program is installing packages" "wait for it, then run this again"
    fi
    die "$reason" "see the lines above; 'apt-get install' by hand shows more"
}

# The Linux source of this release, unless one is there.
kernel_source_package() {
    compgen -G '/usr/src/linux-source-*.tar.xz' >/dev/null || printf 'linux-source\n'
}

rust_needed() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }

# at_least HAVE NEEDED: compares versions such as 1.85 and 1.85.0.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# Nothing where there is no Rust.
rust_version() { { rustc --version 2>/dev/null || true; } | cut -d ' ' -f 2; }

# Takes the Rust that is there, else the distribution's where it is new enough.
require_rust() {
    local needed have
    needed=$(rust_needed)
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    have=$(rust_version)
    if [ -z "$have" ] || ! command -v cargo >/dev/null; then
        install_rust "$needed"
        have=$(rust_version)
    fi
    at_least "${have:-0}" "$needed" ||
        die "Rust $needed or newer is needed; this machine has ${have:-none}" \
            "'rustup update', or apt-get install rustc-web cargo-web in place of rustc and cargo"
}

# install_rust NEEDED: Debian names newer compilers for a stable release "-web".
install_rust() {
    local suffix offered
    apt-cache show rustc >/dev/null 2>&1 || as_root apt-get update >/dev/null 2>&1 || true
    for suffix in "" -web; do
        offered=$(apt-cache policy "rustc$suffix" 2>/dev/null | sed -n 's/^ *Candidate: //p')
        if at_least "${offered:-0}" "$1"; then
            install_packages "cargo$suffix" "rustc$suffix" "rustfmt$suffix" "rust${suffix}-clippy"
            return
        fi
    done
}

# prepare_machine PACKAGES...: all that must be there before something can be built, and these.
prepare_machine() {
    require_debian
    require_root
    prepare_cache
    require_disk
    local source
    source=$(kernel_source_package)
    install_packages "${BUILD_PACKAGES[@]}" ${source:+"$source"} "$@"
    require_rust
}

# build_all [IMAGES...]: the host's binary, the guest and the images, all of them if none is named.
# What is up to date is not made again.
build_all() {
    say "building the runtime"
    cargo build --release --locked --package casemate || die "the build of the runtime failed"
    cargo xtask guest || die "the build of the guest failed"
    cargo xtask image "$@" || die "the build of the images failed"
}

# install_file MODE FROM TO: leaves an equal file alone, replaces another at one stroke.
install_file() {
    cmp -s "$2" "$3" && return
    if ! as_root install -D -m "$1" "$2" "$3.fresh" || ! as_root mv -f "$3.fresh" "$3"; then
        die "cannot install $3"
    fi
}

install_all() {
    local target=${CARGO_TARGET_DIR:-target}
    install_file 755 "$target/release/casemate" "$BINARY_FOLDER/casemate"
    # containerd and Docker start the runtime under this name; `casemate install containerd
    # --undo` removes it.
    as_root ln -sfn "$BINARY_FOLDER/casemate" "$BINARY_FOLDER/containerd-shim-casemate-v2" ||
        die "cannot make $BINARY_FOLDER/containerd-shim-casemate-v2"
    install_file 644 build/guest/vmlinux "$GUEST_FOLDER/vmlinux"
    install_file 644 build/guest/initrd.cpio "$GUEST_FOLDER/initrd.cpio"
}
