# SPDX-License-Identifier: GPL-2.0
# The demonstrations with a Linux guest share this: the guest, and how two hosts are shown
# side by side. After lib.sh: . "$MFR/demo/two-columns.sh"
# shellcheck shell=sh disable=SC2034,SC2154

dir=$O/$BASE$suffix
root=$dir/guest-root
log=$dir/guest.log

compile() {	# compile DIRECTORY/PROGRAM FILE
	gcc -static -s -O2 -Wall -Wextra -isystem "$dir/obj/usr/include" \
		-I "$TREE/tools/testing/selftests/mm" -o "$2" "$1.c" >>"$log" 2>&1 ||
		die "building $1 failed, see $log"
}

# build_guest stock|patched: in $root, the guest with that kernel, what QEMU runs in it
# before that, and the tools of the host
build_guest() {
	local p rom
	say "building the guest"
	rm -rf "$root"
	mkdir -p "$root/tests" "$root/guest" "$root/usr/share/seabios" "$root/usr/share/qemu"
	: >"$log"
	for p in "$TOP/tools/mm/with-kept-memory" "$TOP/tools/mm/heal-kept-memory" \
		"$MFR/in-vm/hit-memory"; do
		compile "$p" "$root/tests/${p##*/}"
	done
	compile "$MFR/in-vm/guest-init" "$root/guest/init"
	(cd "$root/guest" && echo init | cpio -o -H newc --quiet >initramfs.cpio && rm init)
	cp "$(kernel_dir "$1")/$image" "$root/guest/bzImage"
	cp /usr/share/seabios/bios-256k.bin "$root/usr/share/seabios"
	for rom in linuxboot_dma kvmvapic; do
		cp -L "/usr/share/qemu/$rom.bin" "$root/usr/share/qemu"
	done
}

# copy_libraries PROGRAM...: what they are linked with
copy_libraries() {
	# shellcheck disable=SC2046
	cp -L --parents $(ldd "$@" | grep -o '[	 ]/lib[^ ]*\|/usr/lib[^ ]*' | sort -u) "$root"
}

# pack: make that, with what every machine has, the initramfs of the machine
pack() {
	(cd "$root" && find . | cpio -o -H newc --quiet) |
		cat "$dir/initramfs.cpio" - >"$dir/guest.cpio"
}

# show LEFT RIGHT: what both have to say, in two columns. Each line begins with 1 or 2. (Not
# awk's, which may wait for more of it.)
show() {
	printf '\n%s%-38s | %s%s\n' "$bold" "$1" "$2" "$plain"
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

# run COLUMN NAME KERNEL MACHINE [COMMAND]: boot it, as run NAME. Its output
# goes to stdout, with the column.
run() {
	local column="$1" results
	results=$(run_dir "$2" "$3")/results
	rm -rf "${results%/*}"
	export RUN_NAME="$2"
	shift 2
	"$MFR/vm/boot.sh" "$@" &
	tail -n +1 -s 0.3 --pid=$! -F "$results" 2>/dev/null | sed -u "s/\r$//; s/^/$column /"
	wait $!
}

# There may be the CPUs and the memory to run both at once.
at_once=$(awk -v cpus="$JOBS" '/^MemAvailable/ { print (cpus > 1 && $2 > 12582912) }' /proc/meminfo)
