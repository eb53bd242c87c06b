package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// image is a built guest.
type image struct {
	disk, kernel, initrd string
	sizeBytes            int64
}

// recipe builds the guest in the folder that is its only argument. Its text names
// the cached image, so that a change of it builds anew.
const recipe = `set -eu -o pipefail
cd "$1"
mmdebstrap --quiet --variant=minbase --format=directory \
  --include=linux-image-cloud-amd64,initramfs-tools,systemd-sysv,udev,e2fsprogs,kmod,iproute2,nbd-client \
  --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  bookworm root >&2
cat > root/usr/local/sbin/lab <<'END'
#!/bin/sh
# Writes numbered files for ever and reports each once it is on disk; or, told so on
# the kernel's command line, does what the second disk says.
exec >/dev/ttyS0 2>&1
if grep -q lab=orders /proc/cmdline; then
  mount -o ro /dev/vdb /mnt && exec /mnt/run
fi
dir=/var/lib/lab
mkdir -p $dir
n=0 bad=0
while [ -e $dir/$((n+1)) ]; do
  n=$((n+1))
  [ "$(cat $dir/$n)" = "entry $n of the lab" ] || bad=$n
done
echo "LAB cache $(cat /sys/block/vda/queue/write_cache)"
echo "LAB found $n bad $bad"
while :; do
  n=$((n+1))
  echo "entry $n of the lab" | dd of=$dir/$n conv=fsync status=none && sync $dir && echo "LAB synced $n"
  sleep 0.3
done
END
chmod 755 root/usr/local/sbin/lab
cat > root/etc/systemd/system/lab.service <<'END'
[Unit]
Description=writes and reports
After=local-fs.target
[Service]
Environment=HOME=/root
ExecStart=/usr/local/sbin/lab
[Install]
WantedBy=multi-user.target
END
chroot root systemctl enable lab.service >&2
# A login on the console would hang up the line that the service reports on.
chroot root systemctl mask serial-getty@ttyS0.service getty-static.service getty@.service e2scrub_reap.service >&2
echo '/dev/vda1 / ext4 defaults 0 1' > root/etc/fstab
echo lab > root/etc/hostname
cp root/boot/vmlinuz-* vmlinuz
cp root/boot/initrd.img-* initrd
truncate -s 1G disk.img
echo 'start=2048, type=linux, name=root' | sfdisk -q --no-tell-kernel --label gpt disk.img
mke2fs -q -F -t ext4 -L lab -d root -E offset=1048576 disk.img 1022M
rm -r root
`

// imageTools are what the guest that makes images has beside. Debian's kernel of that
// release has no ntfs3, so ntfs-3g is the judge of NTFS there.
const imageTools = "cryptsetup-bin,lvm2,mdadm,dosfstools,exfatprogs,ntfs-3g,fdisk,xfsprogs,attr,acl"

// imageRecipe builds the guest that makes images.
var imageRecipe = strings.Replace(recipe, ",nbd-client ", ",nbd-client,"+imageTools+" ", 1)

// guestImage returns the cached guest that a recipe builds, building it when there is
// none.
func guestImage(ctx context.Context, recipe string) (image, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/var/cache" // root without HOME
	}
	sum := sha256.Sum256([]byte(recipe))
	dir := filepath.Join(cache, "keelblock", fmt.Sprintf("vmlab-%x", sum[:6]))
	img := image{disk: filepath.Join(dir, "disk.img"), kernel: filepath.Join(dir, "vmlinuz"), initrd: filepath.Join(dir, "initrd")}
	if info, err := os.Stat(img.disk); err == nil {
		img.sizeBytes = info.Size()
		return img, nil
	}
	if os.Geteuid() != 0 {
		return image{}, errors.New("building needs root (owners of files, chroot)")
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return image{}, err
	}
	fmt.Println("building the guest from Debian's packages, once; it is kept in", dir)
	// Built aside and renamed, so that what is there is whole.
	work, err := os.MkdirTemp(filepath.Dir(dir), "building-")
	if err != nil {
		return image{}, err
	}
	defer os.RemoveAll(work)
	cmd := exec.CommandContext(ctx, "bash", "-c", recipe, "recipe", work)
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Run(); err != nil {
		return image{}, fmt.Errorf("%w\n%s", err, log.String())
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return image{}, err
	}
	if err := os.Rename(work, dir); err != nil {
		return image{}, err
	}
	info, err := os.Stat(img.disk)
	if err != nil {
		return image{}, err
	}
	img.sizeBytes = info.Size()
	return img, nil
}
