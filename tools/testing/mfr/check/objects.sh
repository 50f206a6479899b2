# SPDX-License-Identifier: GPL-2.0
# Build what the series touches, stock and patched, and compare the warnings. After
# lib.sh: . "$MFR/check/objects.sh". Results go to $cases, as those of $group.
# shellcheck shell=sh disable=SC2086,SC2154

# A tree that is stock or patched by turns: so only the files that differ change, and
# what kbuild has prepared serves both.
BOTH=$O/$BASE/both
c_files=$(git -C "$TREE" diff --name-only base HEAD -- '*.c' ':!tools')

switch_to() {	# switch_to stock|patched
	local ref=base
	[ "$1" = stock ] || ref=$(git -C "$TREE" rev-parse HEAD)
	if ! git -C "$BOTH" rev-parse -q --verify "$ref" >/dev/null 2>&1; then
		rm -rf "$BOTH"
		git -C "$SOURCE" worktree prune
		git -C "$SOURCE" worktree add -q --detach "$BOTH" "$ref"
	fi
	git -C "$BOTH" checkout -q --detach "$ref"
}

# built_in OBJ DIR: the objects and directories that the configuration in OBJ has there
built_in() {
	cat >"$1/mfr-query" <<-EOT
		include $1/include/config/auto.conf
		include $BOTH/$2/Makefile
		built := \$(obj-y) \$(obj-m)
		mfr-query:
			@:\$(foreach o,\$(built) \$(foreach b,\$(built:.o=),\$(\$b-y) \$(\$b-objs)), \\
			\$(info $2/\$o))
	EOT
	make -s --no-print-directory -C "$BOTH" -f "$1/mfr-query" \
		srctree="$BOTH" src="$BOTH/$2" obj="$2" mfr-query 2>/dev/null
}

# objects_of OBJ: which of the touched objects the configuration in OBJ has. (make
# FILE.o builds others as well, and fails in directories that are left out.)
objects_of() {
	local c d up arch
	# Other architectures' Makefiles name their objects whatever the configuration is.
	arch=$(sed -n 's/^CONFIG_\(X86\|ARM64\|RISCV\|S390\)=y/\1/p' \
		"$1/include/config/auto.conf" | tr '[:upper:]' '[:lower:]')
	for d in $(dirname $c_files | sort -u); do
		[ -f "$BOTH/$d/Makefile" ] || continue
		case $d in arch/"$arch"/*) ;; arch/*) continue ;; esac
		# So do Makefiles of directories that the one above leaves out.
		up=$(dirname "$d")
		if [ "$up" != . ] && grep -qs "[ 	]${d##*/}/" "$BOTH/$up/Makefile" &&
		   ! built_in "$1" "$up" | grep -qxF "$d/"; then
			continue
		fi
		built_in "$1" "$d"
	done | sort -u >"$1/mfr-objects"
	for c in $c_files; do
		if grep -qxF "${c%c}o" "$1/mfr-objects"; then
			echo "${c%c}o"
		fi
	done
}

# Warnings and errors without line numbers, which differ between the two trees.
warnings() {
	grep -E '(^|[: ])(warning|error|WARNING|ERROR):' "$1" |
		sed "s,$BOTH/,,g; s,\.\./,,g; s/:[0-9]\{1,\}\(:[0-9]\{1,\}\)\{0,1\}:/:/g" | sort || true
}

# compare NAME STOCK_LOG PATCHED_LOG WHAT: note how the warnings of the two differ
compare() {
	warnings "$2" >"$2.warnings"
	warnings "$3" >"$3.warnings"
	comm -13 "$2.warnings" "$3.warnings" >"$3.new"
	local new result=pass why=
	new=$(wc -l <"$3.new")
	[ "$new" = 0 ] || result=fail why=$3.new
	row $result "$1" "$4" "$(wc -l <"$2.warnings")" "$(wc -l <"$3.warnings")" "$new" "$why"
}

# row pass|fail|skip NAME WHAT STOCK PATCHED NEW WHY: print a row of the table, and note it
row() {
	local since=$(($(date +%s) - began))
	printf '%-5s %-30s %-14s %5s %5s %5s  %3d:%02d  %s\n' "$1" "$2" "$3" "$4" "$5" \
		"$6" $((since / 60)) $((since % 60)) "$7"
	note "$1" "$group" "$2" "$7"
	began=$(date +%s)
}
table_head() {
	: >"$cases"
	began=$(date +%s)
	printf '      %-30s %-14s %5s %5s %5s  %6s\n' "" "" stock patch new m:s
}
table_end() {
	echo
	verdict "$cases"
}

# build WHICH NAME OBJ [VARIABLE=VALUE...]: the objects that the configuration in OBJ
# has, to $objects; $missing is what doesn't compile
build() {
	local which="$1" log="$logs/$2-$1" obj="$3" o
	shift 3
	switch_to $which
	set -- make -C "$BOTH" O="$obj" "$@" W=1 -j"$JOBS"
	objects="" missing=prepare
	"$@" prepare >"$log.prepare" 2>&1 || return 0
	objects=$(objects_of "$obj") missing=
	[ -n "$objects" ] || return 0
	(cd "$obj" && rm -f $objects)
	"$@" -k $objects >"$log" 2>&1 || true
	for o in $objects; do
		[ -f "$obj/$o" ] || missing="$missing $o"
	done
}

# build_both NAME OBJ [VARIABLE=VALUE...]: with the .config in OBJ. Without
# warnings there are no new ones, so that stock isn't asked then.
build_both() {
	build patched "$@"
	local built lost="$missing"
	built="$(echo $objects | wc -w) objects"
	if [ -z "$objects$missing" ]; then
		row skip "$1" "" - - - "has none of the objects"
		return
	fi
	if [ -z "$lost" ] && [ -z "$(warnings "$logs/$1-patched")" ]; then
		row pass "$1" "$built" - 0 0 ""
		return
	fi
	build stock "$@"
	if [ -n "$missing" ]; then
		row skip "$1" "" - - - "stock doesn't compile either: $missing, see $logs/$1-stock"
	elif [ -n "$lost" ]; then
		row fail "$1" "" - - - "doesn't compile: $lost, see $logs/$1-patched"
	else
		compare "$1" "$logs/$1-stock" "$logs/$1-patched" "$built"
	fi
}
