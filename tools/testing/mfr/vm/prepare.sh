#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# prepare.sh stock|patched|both [PACKAGE...]: what it takes to boot that kernel, or both,
# with the tests in an initramfs: Debian packages, the source, kernels

. "${0%/*}/../lib.sh"

kernels=$1
shift
[ "$kernels" != both ] || kernels="stock patched"

"$MFR/vm/packages.sh" "$@"
"$MFR/series/tree.sh"
for kernel in $kernels; do
	"$MFR/vm/kernel.sh" "$kernel"
done
# The tests are built with the headers of the patched kernel.
[ "$kernels" != stock ] || "$MFR/vm/kernel.sh" patched
"$MFR/vm/initramfs.sh"
