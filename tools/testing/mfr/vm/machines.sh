#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make machines: the machines of machines.cfg as they are in this configuration, or those
# that MACHINES= names. machines.sh rst: the list for hugetlb-mfr.rst.

. "${0%/*}/../lib.sh"

case ${1:-} in
rst)	table | awk -F '\t' -f "$MFR/vm/machines-rst.awk" ;;
*)	table | awk -F '\t' -v wanted=" $MACHINES " '
		$1 == "programs" || wanted != "  " && !index(wanted, " " $1 " ") { next }
		$2 == "here" {
			here = $3 == "yes" || wanted != "  "
			if (here)
				printf "\n[%s]\n", $1
			next
		}
		here { print $2 " = " $3 }' ;;
esac
