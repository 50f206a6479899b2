#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make run GUEST=linux: a Linux guest under QEMU as it is, which loses the same pages on
# a stock and on a patched host, where the memory is healed in the end. What happens on
# both is shown as it happens, side by side. (The guest's kernel is the stock one on both:
# it needs nothing new.)

. "${0%/*}/../lib.sh"
need_x86 "make run is about machine checks, which QEMU has for x86 only"
[ -z "$DEBUG" ] || die "DEBUG=1 makes a guest's life too slow"

"$MFR/vm/prepare.sh" both seabios

grep -qx CONFIG_KVM_AMD=y "$(kernel_dir stock)/config" ||
	die "BASE=$BASE: there is no KVM in these kernels"

say "building the guest"
dir=$O/$BASE$suffix
root=$dir/guest-root
log=$dir/guest.log
rm -rf "$root"
mkdir -p "$root/tests" "$root/guest" "$root/usr/share/seabios" "$root/usr/share/qemu"
: >"$log"
compile() {	# compile DIRECTORY/PROGRAM FILE
	gcc -static -s -O2 -Wall -Wextra -isystem "$dir/obj/usr/include" \
		-I "$TREE/tools/testing/selftests/mm" -o "$2" "$1.c" >>"$log" 2>&1 ||
		die "building $1 failed, see $log"
}
for p in "$TOP/tools/mm/with-kept-memory" "$TOP/tools/mm/heal-kept-memory" "$MFR/in-vm/hit-memory"; do
	compile "$p" "$root/tests/${p##*/}"
done
compile "$MFR/in-vm/guest-init" "$root/guest/init"
(cd "$root/guest" && echo init | cpio -o -H newc --quiet >initramfs.cpio && rm init)
cp "$MFR/in-vm/play-host" "$root/tests"
cp "$(kernel_dir stock)/$image" "$root/guest/bzImage"
# QEMU, what it is linked with, and what it runs in the guest before the kernel.
qemu=/usr/bin/qemu-system-x86_64
libraries=$(ldd $qemu | grep -o '/lib[^ ]*\|/usr/lib[^ ]*')
# shellcheck disable=SC2086
cp -L --parents $qemu $libraries "$root"
cp /usr/share/seabios/bios-256k.bin "$root/usr/share/seabios"
for rom in linuxboot_dma kvmvapic; do
	cp -L "/usr/share/qemu/$rom.bin" "$root/usr/share/qemu"
done
(cd "$root" && find . | cpio -o -H newc --quiet) |
	cat "$dir/initramfs.cpio" - >"$dir/guest.cpio"

results() { echo "$(run_dir guest "$1")/results"; }	# results KERNEL
run() {		# run COLUMN KERNEL: what happens goes to stdout, with the column
	rm -rf "$(run_dir guest "$2")"
	"$MFR/vm/boot.sh" "$2" guest &
	tail -n +1 -s 0.3 --pid=$! -F "$(results "$2")" 2>/dev/null |
		sed -u "s/\r$//; s/^/$1 /"
	wait $!
}

# show: what both have to say, in two columns. (Not awk's, which may wait for more of it.)
show() {
	printf '\n%s%-38s | %s%s\n' "$bold" "on the stock kernel" "on the patched kernel" "$plain"
	while read -r column at who text; do
		case $at$who in [0-9]*host:|[0-9]*guest:) ;; *) continue ;; esac
		who=$(printf '%3d %-6s' "$at" "$who")
		echo "$text" | fold -s -w 27 | while IFS= read -r line; do
			line=$(printf '%-10s %s' "$who" "$line") who=
			if [ "$column" = 1 ]; then
				printf '%-38s |\n' "$line"
			else
				printf '%-38s | %s\n' '' "$line"
			fi
		done
	done
}

# Both at once, if there are the CPUs and the memory for that.
at_once=$(awk -v cpus="$JOBS" '/^MemAvailable/ { print (cpus > 1 && $2 > 12582912) }' /proc/meminfo)
say "the guest boots, on both kernels"
{
	run 1 stock &
	[ "$at_once" = 1 ] || wait
	run 2 patched &
	wait
} | show

say "done; what has run is in $O/runs/guest-*"
awk -F = -v bold="$bold" -v red="$red" -v green="$green" -v plain="$plain" \
	-f "$MFR/demo/run-guest.awk" "$(results stock)" "$(results patched)" ||
	die "that is not how it should have ended"
