#!/bin/bash
# What the guest of the scenario windows does; root, from the disk of orders. Lines
# that begin with "LAB: " are read by the host. settings says: images, a list of
# TYPE:DEVICE:ENTRIES, and out, the disk that takes the manifests as a tar archive.
set -eu -o pipefail
here=/mnt
say() { echo "LAB: $*"; }
trap 'dmesg | tail -n 15; say "fail line $LINENO: $BASH_COMMAND"; sleep 600' ERR
set -E
. $here/settings
say "kernel $(uname -r)"
mkdir -p /a /tmp/manifests
number=0
for image in $images; do
  IFS=: read -r type device entries <<<"$image"
  modprobe "$type"
  mount -t "$type" "/dev/$device" /a
  $here/judge fill /a $entries
  umount /a
  mount -t "$type" -o ro "/dev/$device" /a
  $here/judge manifest /a >/tmp/manifests/$number
  umount /a
  say "$type on $device: $(wc -l </tmp/manifests/$number) names"
  number=$((number + 1))
done
tar -cf /tmp/manifests.tar -C /tmp/manifests .
dd if=/tmp/manifests.tar of="/dev/$out" bs=1M conv=fsync status=none
sync
say "done"
sleep 600 # the host ends the guest
