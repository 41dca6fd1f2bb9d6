#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The first process of a plugged-in guest: loads the drivers, all but the balloon's, and then does what it is told,
# a line of the console at a time. After each it says its number and its exit status.
/bin/busybox mkdir -p /bin /dev /proc /sys /tmp
/bin/busybox --install -s /bin
export PATH=/bin
chmod 600 /agent.key
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=95% tmp /tmp
stty -echo 2> /dev/null
while read -r module; do
  [ "$module" = virtio_balloon.ko ] || insmod "/modules/$module"
done < /modules/list

echo "[lacuna 0 0]"
count=0
while read -r line; do
  eval "$line"
  status=$?
  count=$((count + 1))
  echo "[lacuna $count $status]"
done
poweroff -f
