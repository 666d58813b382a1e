#!/bin/sh
# Fetch the six published CIFAR-100 teachers into save/models, below the current folder.
#
# ITRD_TEACHERS_URL names another place that holds {name}_vanilla/ckpt_epoch_240.pth.
# The SHA-256 of every file that arrives is kept in save/models/SHA256SUMS; files that are there already are
# not fetched again but compared with it. Exit status 1: a file is missing or not the one that was recorded.
set -u

base=${ITRD_TEACHERS_URL:-http://shape2prog.csail.mit.edu/repo}
folder=save/models
sums=$folder/SHA256SUMS
part=
failed=0

trap '[ -z "$part" ] || rm -f "$part"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

complain() {
    echo "$*" >&2
    failed=1
}

# download URL FILE
download() {
    if command -v curl >/dev/null 2>&1; then
        curl --silent --show-error --fail --location --connect-timeout 30 \
            --speed-limit 1000 --speed-time 60 --output "$2" "$1"
    elif command -v wget >/dev/null 2>&1; then
        tries= # not every wget can be told to give up early
        if wget --help 2>&1 | grep -q -e --tries; then tries=--tries=2; fi
        wget -q -T 30 $tries -O "$2" "$1"
    else
        echo "neither curl nor wget is installed" >&2
        return 1
    fi
}

checksum() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum <"$1" | cut -d ' ' -f 1
    else
        shasum -a 256 <"$1" | cut -d ' ' -f 1
    fi
}

# recorded FILE: the checksum kept for it, or nothing
recorded() {
    [ ! -f "$sums" ] || awk -v file="$1" '$2 == file { print $1 }' "$sums"
}

# usable FILE: not empty, and not the web page that some servers send in place of an error
usable() {
    [ -s "$1" ] && [ "$(dd if="$1" bs=1 count=1 2>/dev/null | tr -d '\000')" != "<" ]
}

fetch() {
    file=${1}_vanilla/ckpt_epoch_240.pth
    target=$folder/$file
    kept=$(recorded "$file")
    if [ -f "$target" ]; then
        if [ -z "$kept" ]; then
            echo "$target: there already (no checksum was kept)"
        elif [ "$(checksum "$target")" = "$kept" ]; then
            echo "$target: there already, checksum as kept"
        else
            complain "$target: NOT the file that was fetched (its checksum differs from $sums); delete it to fetch it again"
        fi
        return
    fi
    mkdir -p "$folder/${1}_vanilla" || exit 1
    part=$target.part.$$
    echo "$target: fetching $base/$file"
    if ! download "$base/$file" "$part"; then
        complain "$target: $base/$file cannot be fetched; train one: python train_teacher.py --model $1"
    elif ! usable "$part"; then
        complain "$target: what $base/$file sends is not a checkpoint; train one: python train_teacher.py --model $1"
    else
        sum=$(checksum "$part")
        if [ -n "$kept" ] && [ "$kept" != "$sum" ]; then
            complain "$target: $base/$file is NOT the file that came before; to accept it, remove its line from $sums"
        else
            mv "$part" "$target"
            [ -n "$kept" ] || echo "$sum  $file" >>"$sums"
        fi
    fi
    rm -f "$part"
    rmdir "$folder/${1}_vanilla" 2>/dev/null # only if it is empty
    part=
}

for name in wrn_40_2 resnet56 resnet110 resnet32x4 vgg13 ResNet50; do
    fetch "$name"
done
exit $failed
