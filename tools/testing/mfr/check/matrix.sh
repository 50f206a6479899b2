#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make matrix: what the series touches, built with W=1 in many configurations, stock
# and patched; then modules linked, coccicheck, kernel-doc and Sphinx. No warning may be
# new.
# ONLY="NAME..." does only those.
# shellcheck disable=SC2046,SC2086

. "${0%/*}/../lib.sh"

clang="clang-19"
"$MFR/vm/packages.sh" $clang gcc-aarch64-linux-gnu gcc-riscv64-linux-gnu gcc-s390x-linux-gnu \
	coccinelle python3-sphinx
"$MFR/series/tree.sh"
. "$MFR/check/objects.sh"
logs=$O/runs/matrix-$BASE
cases=$logs/cases group=matrix
mkdir -p "$logs"

# NAME MAKE_VARIABLES CONFIGURATION OPTIONS_TO_BE_OFF: the first of those decides,
# the others would select it. "all" is what make kernel has. (On x86-64 hugetlb always
# comes with OPTIMIZE_VMEMMAP, on i386 and arm64 never.)
x86=ARCH=x86_64
configurations="\
all $x86 all
MEMORY_FAILURE=n $x86 all MEMORY_FAILURE
HUGETLBFS=n $x86 all HUGETLBFS
TRANSPARENT_HUGEPAGE=n $x86 all TRANSPARENT_HUGEPAGE
CMA=n $x86 all CMA
CMA=n,COMPACTION=n $x86 all CONTIG_ALLOC CMA COMPACTION TRANSPARENT_HUGEPAGE MEMORY_HOTREMOVE
MEMFD_CREATE=n $x86 all MEMFD_CREATE HUGETLBFS TMPFS SHMEM UDMABUF
MIGRATION=n $x86 all MIGRATION NUMA_MIGRATION MEMORY_FAILURE CMA COMPACTION TRANSPARENT_HUGEPAGE MEMORY_HOTREMOVE
USERFAULTFD=n $x86 all USERFAULTFD
MEMORY_HOTPLUG=n $x86 all MEMORY_HOTPLUG
NUMA=n $x86 all NUMA
allnoconfig $x86 allnoconfig
allmodconfig $x86 allmodconfig
clang $x86,CC=$clang all
clang-allmodconfig $x86,CC=$clang allmodconfig
i386 ARCH=i386 defconfig HUGETLB_PAGE_OPTIMIZE_VMEMMAP
arm64 ARCH=arm64,CROSS_COMPILE=aarch64-linux-gnu- defconfig
riscv64 ARCH=riscv,CROSS_COMPILE=riscv64-linux-gnu- defconfig
s390x ARCH=s390,CROSS_COMPILE=s390x-linux-gnu- defconfig"

wanted() { case " ${ONLY:-$1} " in *" $1 "*) ;; *) return 1 ;; esac; }

# configure OBJ VARIABLES CONFIGURATION OFF...: options in kernel.config are wanted
# wherever an architecture has them
configure() {
	local obj="$1" make="make -C $BOTH O=$1 $2" target="$3"
	shift 3
	rm -f "$obj/.config"
	case $target in
	all)	   $make tinyconfig && fragment "$@" && $make olddefconfig ;;
	defconfig) $make defconfig && fragment "$@" && $make olddefconfig ;;
	*)	   $make $target ;;
	esac || return 1
	# Warnings are counted, and must not end the build.
	"$BOTH/scripts/config" --file "$obj/.config" -d WERROR && $make olddefconfig
}
fragment() {
	cat "$MFR/config/kernel.config" >>"$obj/.config"
	case $make in
	*ARCH=x86_64*|*ARCH=i386*) cat "$MFR/config/x86.config" ;;
	*ARCH=arm64*)		   cat "$MFR/config/arm64.config" ;;
	esac >>"$obj/.config"
	for o in "$@"; do
		"$BOTH/scripts/config" --file "$obj/.config" -d "$o"
	done
}

table_head
switch_to patched
while read -r name variables target off; do
	wanted "$name" || continue
	variables=$(echo "$variables" | tr , ' ')
	# Those that differ in their options only share what is built for the host.
	obj=$O/$BASE/matrix/$(echo "$variables" | tr -c 'a-z0-9\n' _)
	mkdir -p "$obj"
	switch_to patched
	if ! configure "$obj" "$variables" "$target" $off >"$logs/$name.config" 2>&1; then
		row fail "$name" "" - - - "can't be configured, see $logs/$name.config"
	elif grep -q "^CONFIG_${off%% *}=" "$obj/.config"; then
		row fail "$name" "" - - - "${off%% *} can't be turned off like this"
	else
		cp "$obj/.config" "$logs/$name.config"
		build_both "$name" "$obj" $variables
	fi
done <<EOT
$configurations
EOT

# Only linking shows whether modules can use the symbols that the series exports.
if wanted modules; then
	switch_to patched
	obj=$O/$BASE/matrix/modules log=$logs/modules
	mkdir -p "$obj"
	modules="KVM KVM_AMD IOMMUFD HWPOISON_INJECT"
	with_modules() {
		configure "$obj" $x86 all || return 1
		cat "$MFR/config/x86-kvm.config" >>"$obj/.config"
		"$BOTH/scripts/config" --file "$obj/.config" -e MODULES -d IOMMUFD_TEST \
			$(printf ' -m %s' $modules) &&
			make -C "$BOTH" O="$obj" $x86 olddefconfig || return 1
		for m in $modules; do
			grep "^CONFIG_$m=m" "$obj/.config" || return 1
		done
	}
	if ! with_modules >"$log.config" 2>&1; then
		row fail modules "" - - - "can't be configured, see $log.config"
	elif ! make -C "$BOTH" O="$obj" $x86 -j"$JOBS" vmlinux modules >"$log" 2>&1; then
		row fail modules "" - - - "$modules can't be linked, see $log"
	else
		row pass modules "$(echo $modules | wc -w) modules" - - - ""
	fi
fi

files=$(git -C "$TREE" diff --name-only base HEAD -- '*.[ch]' ':!tools')
there() { for f in $1; do [ ! -f "$BOTH/$f" ] || echo "$f"; done; }

if wanted kernel-doc; then
	for which in stock patched; do
		switch_to $which
		(cd "$BOTH" && scripts/kernel-doc -none $(there "$files")) \
			>"$logs/kernel-doc-$which" 2>&1 || true
	done
	compare kernel-doc "$logs/kernel-doc-stock" "$logs/kernel-doc-patched" \
		"$(echo $files | wc -w) files"
fi

# Only the touched documents and an index, for all of Documentation takes an hour.
if wanted htmldocs; then
	documents=$(git -C "$TREE" diff --name-only base HEAD -- 'Documentation/*.rst')
	for which in stock patched; do
		switch_to $which
		docs=$logs/docs-$which/Documentation
		rm -rf "$docs"
		mkdir -p "$docs"
		cp "$BOTH/MAINTAINERS" "$docs/.."
		(cd "$BOTH" && cp --parents $(there "$documents") "$docs/..")
		(cd "$docs" && printf 'All\n===\n\n.. toctree::\n\n' &&
			find . -name '*.rst' | sed 's,^\./,   ,; s/\.rst$//' | sort) >"$docs.index"
		mv "$docs.index" "$docs/index.rst"
		(cd "$BOTH" && srctree=$BOTH BUILDDIR=$docs/../out LC_ALL=C.UTF-8 \
			PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 -m sphinx -b html \
			-c Documentation -D html_theme=alabaster "$docs" "$docs/../out") 2>&1 |
			sed "s,$docs/,,g" >"$logs/htmldocs-$which" || true
	done
	if [ -f "$logs/docs-patched/out/index.html" ]; then
		compare htmldocs "$logs/htmldocs-stock" "$logs/htmldocs-patched" \
			"$(echo $documents | wc -w) documents"
	else
		row fail htmldocs "" - - - "Sphinx has failed, see $logs/htmldocs-patched"
	fi
fi

# A check that is silent about the patched files needs no comparison with stock.
if wanted coccicheck; then
	: >"$logs/coccicheck-stock"
	: >"$logs/coccicheck-patched"
	# Line numbers differ between the two trees: a complaint is one about a function.
	in_function=$MFR/check/in-function.awk
	cocci() {	# each check names the options it wants, as for scripts/coccicheck
		(cd "$BOTH" && timeout 600 spatch -D report --no-show-diff --very-quiet \
			$(sed -n 's,^/// *Options: *,,p; s,^// *Options: *,,p' "$1") \
			--cocci-file "$1" $(there "$files")) >"$logs/cocci" 2>&1 || return 1
		(cd "$BOTH" && awk -F : -f "$in_function" "$logs/cocci") | sort -u
	}
	switch_to patched
	speaking=
	n=0 ran=0
	for c in "$BOTH"/scripts/coccinelle/*/*.cocci "$BOTH"/scripts/coccinelle/*/*/*.cocci; do
		n=$((n + 1))
		if ! cocci "$c" >"$logs/cocci-patched"; then
			say "${c#"$BOTH"/} does not run: $(tail -n 1 "$logs/cocci")"
			continue
		fi
		ran=$((ran + 1))
		[ ! -s "$logs/cocci-patched" ] || speaking="$speaking $c"
		cat "$logs/cocci-patched" >>"$logs/coccicheck-patched"
	done
	switch_to stock
	for c in $speaking; do
		cocci "$c" >>"$logs/coccicheck-stock" || true
	done
	compare coccicheck "$logs/coccicheck-stock" "$logs/coccicheck-patched" "$ran of $n checks"
fi
table_end
