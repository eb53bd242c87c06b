# Volumes that span and nest: LVM2, md and LUKS, made by their own tools. Each case leaves
# its disks as NAME.img, "volumes" (a line "NAME SIZE SHA-256" for the content of each
# volume, and "NAME - unsupported" where only the name must be known) and the manifest of
# each file system as NAME.manifest.
modprobe -a dm-mod dm-crypt dm-mirror dm-snapshot dm-raid raid0 raid1 md-mod xts ecb essiv cbc
export MDADM_NO_SYSTEMCTL=1
# Nothing but mdadm below assembles arrays.
mkdir -p /run/udev/rules.d /etc/mdadm
echo 'AUTO -all' >/etc/mdadm/mdadm.conf
rm -f /usr/lib/udev/rules.d/64-md-raid-assembly.rules /usr/lib/udev/rules.d/69-lvm.rules
udevadm control --reload
lvm_config='devices { global_filter = [ "a|^/dev/loop|", "a|^/dev/md|", "a|^/dev/mapper/crypt|", "r|.*|" ] scan_lvs = 0 } global { thin_check_executable = "" cache_check_executable = "" } activation { monitoring = 0 } backup { backup = 0 archive = 0 }'
lv() { local verb=$1; shift; $verb --config "$lvm_config" "$@" >>/tmp/lvm.log 2>&1 || { tail -n 5 /tmp/lvm.log; return 1; }; }
quiet() { "$@" >>/tmp/tools.log 2>&1 || { tail -n 5 /tmp/tools.log; return 1; }; }
# content NAME DEVICE
content() {
  sync
  fsguest content $1 $2 >>volumes
}
# ext NAME DEVICE: a small ext4 with files, its manifest, and the content of the device
ext() {
  local block=1024
  [ $(blockdev --getss $2) = 512 ] || block=4096
  quiet mke2fs -q -F -t ext4 -O ^has_journal -E lazy_itable_init=1,nodiscard -N 512 -b $block -L "$(echo $1 | cut -c 1-16)" $2
  mount $2 /mnt2
  fill /mnt2
  sync
  umount /mnt2
  mount -o ro $2 /mnt2
  fsguest manifest /mnt2 >$1.manifest
  umount /mnt2
  content $1 $2
}
mkdir -p /mnt2

lvm_linear() {
  case_begin lvm-linear
  local a=$(disk d0.img 24M) b=$(disk d1.img 20M)
  # A small metadata area, so that its ring wraps.
  lv pvcreate --metadatasize 20k --dataalignment 64k $a
  lv pvcreate --metadatacopies 2 $b
  lv vgcreate -s 1M my-vg $a $b
  lv lvcreate -an -Zn -l 20 -n root my-vg $a
  lv lvcreate -an -Zn -l 3 -n gap-lv my-vg $a
  lv lvcreate -an -Zn -l 4 -n other my-vg $b
  lv lvremove -f my-vg/gap-lv
  lv lvextend -l +12 my-vg/root $b
  local i
  for i in $(seq 12); do lv vgchange --addtag "tag-number-$i-to-make-the-text-a-little-longer" my-vg; done
  lv vgchange -ay my-vg
  ext my-vg-root /dev/my-vg/root
  ext my-vg-other /dev/my-vg/other
  lv vgchange -an my-vg
  free $a $b
  case_end
}

lvm_striped() {
  case_begin lvm-striped
  local a=$(disk d0.img 56M) b=$(disk d1.img 56M) c=$(disk d2.img 56M)
  lv pvcreate $a $b $c
  lv vgcreate -s 1M vg0 $a $b $c
  lv lvcreate -an -Zn -i 3 -I 16k -L 12M -n striped vg0
  lv lvcreate -an -Zn --type raid0 -i 2 -I 64k -L 10M -n raid0 vg0
  lv lvcreate -an -Zn --type raid0_meta -i 3 -I 64k -L 9M -n raid0m vg0
  lv lvcreate -ay -Zn --type raid1 -m 1 -L 8M -n raid1 vg0
  lv lvcreate -ay -Zn --type mirror -m 1 --mirrorlog core -L 8M -n mirror vg0
  lv lvcreate -an -Zn -L 6M -n origin vg0
  lv vgchange -ay vg0
  ext vg0-striped /dev/vg0/striped
  ext vg0-raid0 /dev/vg0/raid0
  ext vg0-raid0m /dev/vg0/raid0m
  ext vg0-raid1 /dev/vg0/raid1
  ext vg0-mirror /dev/vg0/mirror
  ext vg0-origin /dev/vg0/origin
  lv lvcreate -s -L 2M -n snap vg0/origin
  mount /dev/vg0/origin /mnt2
  echo changed >/mnt2/etc/hostname
  umount /mnt2
  sed -i '/vg0-origin/d' volumes
  content vg0-origin /dev/vg0/origin
  mount -o ro /dev/vg0/origin /mnt2
  fsguest manifest /mnt2 >vg0-origin.manifest
  umount /mnt2
  echo "vg0-snap - unsupported" >>volumes
  lv lvcreate -an -Zn --type raid5 -i 2 -L 4M -n raid5 vg0
  echo "vg0-raid5 - unsupported" >>volumes
  local i
  for i in $(seq 60); do
    [ "$(lvs --config "$lvm_config" --noheadings -o copy_percent vg0/raid1 vg0/mirror 2>/dev/null | grep -c 100.00)" = 2 ] && break
    sleep 1
  done
  lv vgchange -an vg0
  free $a $b $c
  case_end
}

# md_case NAME LEVEL METADATA OPTIONS... LOOPS...
md_case() {
  local name=$1 level=$2 metadata=$3
  shift 3
  quiet mdadm --create /dev/md/$name --run --force --level=$level --metadata=$metadata --homehost=guest "$@"
}
md_raid0() {
  case_begin md-raid0
  # Three members of unequal size: three zones.
  local a=$(disk d0.img 6M) b=$(disk d1.img 9M) c=$(disk d2.img 12M)
  md_case zones 0 1.2 --chunk=64 --data-offset=1024K --raid-devices=3 $a $b $c
  ext md-zones /dev/md/zones
  quiet mdadm --stop /dev/md/zones
  free $a $b $c
  case_end
  case_begin md-raid0-original
  a=$(disk d0.img 6M) b=$(disk d1.img 9M) c=$(disk d2.img 12M)
  md_case first 0 1.1 --layout=original --chunk=16 --data-offset=1024K --raid-devices=3 $a $b $c
  ext md-first /dev/md/first
  quiet mdadm --stop /dev/md/first
  free $a $b $c
  case_end
}

# Superblock 0.90 has no field for the layout of a RAID0.
md_raid0_old() {
  case_begin md-raid0-old
  local a=$(disk d0.img 8M) b=$(disk d1.img 8M)
  quiet mdadm --create /dev/md7 --run --force --level=0 --layout=dangerous --metadata=0.90 --chunk=32 --raid-devices=2 $a $b
  ext md-7 /dev/md7
  quiet mdadm --stop /dev/md7
  free $a $b
  case_end
}

# md_mirror CASE NAME METADATA: the second leg is failed and misses what comes after.
md_mirror() {
  case_begin $1
  local a=$(disk d0.img 8M) b=$(disk d1.img 8M) device=/dev/md/$2
  [ $3 != 0.90 ] || device=/dev/md$2
  quiet mdadm --create $device --run --force --level=1 --metadata=$3 --homehost=guest --raid-devices=2 --assume-clean $a $b
  ext md-$2 $device
  if [ $1 = md-raid1-stale ]; then
    quiet mdadm $device --fail $b
    quiet mdadm $device --remove $b
    mount $device /mnt2
    echo "newer than the leg that failed" >/mnt2/etc/hostname
    seq 50000 >/mnt2/numbers
    sync
    umount /mnt2
    mount -o ro $device /mnt2
    fsguest manifest /mnt2 >md-$2.manifest
    umount /mnt2
    rm volumes
    content md-$2 $device
  fi
  quiet mdadm --stop $device
  free $a $b
  case_end
}

# blank LOOP FROM COUNT: zeros, in KiB, over key slots that are not in use, whose random
# bytes do not compress
blank() { dd if=/dev/zero of=$1 bs=1k seek=$2 count=$3 conv=notrunc,fsync status=none; }
crypt_open() { quiet cryptsetup open --type luks --disable-keyring "$@"; }

luks() {
  local a b
  printf 'correct horse' >/tmp/pass
  head -c 64 /dev/urandom >/tmp/keyfile

  case_begin luks1
  a=$(disk d0.img 6M)
  quiet cryptsetup luksFormat -q --type luks1 -c aes-cbc-essiv:sha256 -s 256 -h sha256 --pbkdf-force-iterations 1500 --align-payload 2048 -d /tmp/pass $a
  quiet cryptsetup luksAddKey -q --pbkdf-force-iterations 1000 -d /tmp/pass $a /tmp/keyfile
  crypt_open -d /tmp/keyfile $a crypt1
  ext d0-0 /dev/mapper/crypt1
  quiet cryptsetup close crypt1
  cp /tmp/pass passphrase
  cp /tmp/keyfile keyfile
  free $a
  case_end

  case_begin luks1-xts
  a=$(disk d0.img 5M)
  quiet cryptsetup luksFormat -q --type luks1 -c aes-xts-plain64 -s 512 -h sha512 --pbkdf-force-iterations 1500 --align-payload 2048 -d /tmp/pass $a
  blank $a 256 1764
  crypt_open -d /tmp/pass $a crypt1
  ext d0-0 /dev/mapper/crypt1
  quiet cryptsetup close crypt1
  cp /tmp/pass passphrase
  free $a
  case_end

  case_begin luks2-4k
  a=$(disk d0.img 6M)
  quiet cryptsetup luksFormat -q --type luks2 --sector-size 4096 --pbkdf argon2id --pbkdf-memory 32768 --pbkdf-parallel 2 --pbkdf-force-iterations 4 \
    --luks2-metadata-size 16k --luks2-keyslots-size 512k --offset 2048 -d /tmp/pass $a
  crypt_open -d /tmp/pass $a crypt1
  ext d0-0 /dev/mapper/crypt1
  quiet cryptsetup close crypt1
  cp /tmp/pass passphrase
  free $a
  case_end

  # Partition, LUKS2, LVM, ext4: as Debian's installer makes it. The second slot is a key file.
  case_begin luks2-lvm
  truncate -s 12M d0.img
  echo 'start=2048, size=20480, type=linux' | sfdisk -q --label gpt d0.img
  a=$(losetup -f --show -o $((2048 * 512)) --sizelimit $((20480 * 512)) d0.img)
  quiet cryptsetup luksFormat -q --type luks2 --pbkdf argon2i --pbkdf-memory 16384 --pbkdf-parallel 1 --pbkdf-force-iterations 4 \
    --luks2-metadata-size 16k --luks2-keyslots-size 1024k --offset 4096 -d /tmp/pass $a
  quiet cryptsetup luksAddKey -q --pbkdf pbkdf2 --pbkdf-force-iterations 2000 -d /tmp/pass $a /tmp/keyfile
  blank $a 536 520
  crypt_open -d /tmp/keyfile $a crypt1
  lv pvcreate --dataalignment 64k --metadatasize 60k /dev/mapper/crypt1
  lv vgcreate -s 512k crypt-vg /dev/mapper/crypt1
  lv lvcreate -an -Zn -L 3M -n root crypt-vg
  lv lvcreate -an -Zn -L 3M -n home crypt-vg
  lv vgchange -ay crypt-vg
  ext crypt-vg-root /dev/crypt-vg/root
  ext crypt-vg-home /dev/crypt-vg/home
  lv vgchange -an crypt-vg
  quiet cryptsetup close crypt1
  cp /tmp/pass passphrase
  cp /tmp/keyfile keyfile
  free $a
  case_end
}

md_lvm() {
  case_begin md-lvm
  local a=$(disk d0.img 12M) b=$(disk d1.img 12M)
  quiet mdadm --create /dev/md/data --run --force --level=1 --metadata=1.2 --data-offset=1024K --homehost=guest --assume-clean --raid-devices=2 $a $b
  lv pvcreate /dev/md/data
  lv vgcreate -s 1M onmd /dev/md/data
  lv lvcreate -an -Zn -L 6M -n data onmd
  lv vgchange -ay onmd
  ext onmd-data /dev/onmd/data
  lv vgchange -an onmd
  quiet mdadm --stop /dev/md/data
  free $a $b
  case_end
}

luks
md_raid0
md_mirror md-raid1 mirror 1.0
md_mirror md-raid1-stale stale 1.2
md_mirror md-raid1-old 9 0.90
md_lvm
lvm_striped
lvm_linear
md_raid0_old
