#!/bin/busybox sh
# The first process of the outer machine: it loads the modules, runs /job, and switches the machine off.
# Kernel messages go to the first serial port, the job's output to the second, its errors to the third.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mkdir -p /dev/shm /tmp /run
for folder in /dev/shm /tmp /run; do $b mount -t tmpfs tmpfs $folder; done
while read -r module; do $b insmod /modules/$module; done < /modules/list
$b ip link set lo up
$b stty -F /dev/ttyS1 raw
$b stty -F /dev/ttyS2 raw
# Guest memory is shared memory: let it use huge pages where it asks for them.
echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled
/job < /dev/null > /dev/ttyS1 2> /dev/ttyS2
echo "lacuna-nested: exit $?" > /dev/ttyS1
$b poweroff -f
