# SPDX-License-Identifier: GPL-2.0
# The only front door: the scripts are in tools/testing/mfr, whose README tells which.

BASE ?= 7.3
O ?= build
export BASE O KSRC DEBUG ARCH PAGES STOCK MACHINE MACHINES SUITES TEST SET EACH V
MFR := tools/testing/mfr
WHICH := $(if $(filter-out no,$(STOCK)),stock,patched)

ifneq ($(filter-out linux qemu,$(GUEST)),)
$(error GUEST=$(GUEST): use linux or qemu)
endif

help:
	@echo "make run        the same memory errors on a stock and a patched kernel: a table"
	@echo "make run GUEST=linux  a Linux guest that loses memory on both: it dies, it lives on"
	@echo "make run GUEST=qemu   a Linux guest under QEMU without and with patches/qemu: healed,"
	@echo "                migrated, handed over to another QEMU and reset"
	@echo "make bench      what the series costs and saves: instructions, stock and patched"
	@echo "make check      the tests; ends with 'N passed, N failed, N skipped'"
	@echo "make check-all  what CI runs: the tests without the stock kernel, and one more each day,"
	@echo "                in turn: the stock kernel, 6.12, the stress test with DEBUG=1"
	@echo "make test TEST='hugetlb-mfr-heal -r NAME'  only that, or -l: a list; MACHINE=NAME"
	@echo "make machines   the virtual machines: what hardware, and what runs there"
	@echo "make tests-tar  build/tests-BASE.tar.gz: the tests, for a patched kernel elsewhere"
	@echo "make check-peers  others' tests of hugepages on both kernels: no result differs"
	@echo "make check-debian  what is touched, built as Debian builds it: no new warnings"
	@echo "make check-fresh  run and check in a newly installed Debian 13; SUITE=bookworm: 12;"
	@echo "                QEMU=backports; TARGETS='COMMAND...': only these"
	@echo "make check-qemu  patches/qemu, and QEMU's own tests with and without it; EACH=1: QEMU is"
	@echo "                built after each patch"
	@echo "make check-rasdaemon  rasdaemon's record of memory errors, without and with"
	@echo "                patches/rasdaemon"
	@echo "make lint       only the static tests: of the series, and of these scripts"
	@echo "make matrix     what is touched, built in many configurations: no new warnings"
	@echo "make prefixes   what is touched, compiled after each patch: no new warnings; at"
	@echo "                the end of each set that kernel boots, and runs the tests there are"
	@echo "make kernel     build/BASE/bzImage, patched; STOCK=1: build/BASE-stock/bzImage"
	@echo "make boot       a shell in the patched kernel; STOCK=1: in the stock kernel;"
	@echo "                MACHINE=NAME: in that machine"
	@echo "make tree       build/BASE/linux: a git tree with a commit for each patch"
	@echo "make refresh    write that tree's commits back to patches/ and new files"
	@echo "make series     build/series/BASE/*.patch, BASE.mbox: the complete series; SET=NAME:"
	@echo "                one of its sets, for each of which patches/series.BASE has a heading"
	@echo "make rangediff  BASE=6.12: what that series does in another way than 7.3's"
	@echo "make clean      remove build/"
	@echo
	@echo "BASE=6.12       another kernel version than 7.3: one of $(patsubst patches/series.%,%,$(wildcard patches/series.*))"
	@echo "KSRC=DIR        a kernel tree of your own instead of Debian's package"
	@echo "ARCH=arm64      for Arm: kernel, boot and check, without machine checks"
	@echo "PAGES=64k       with ARCH=arm64: base pages of 64 KiB instead of 4"
	@echo "MACHINES='NAME...'  make check in these only"
	@echo "DEBUG=1         kernels with KASAN, lockdep and others; DEBUG=races: with KCSAN, which"
	@echo "                finds data races, and PREEMPT_RT"
	@echo "O=DIR           build there instead of in build/"
	@echo "V=1             show what make says"

run:
	@$(MFR)/demo/run$(addprefix -,$(GUEST)).sh

bench:
	@$(MFR)/bench/bench.sh

check check-all check-debian check-fresh check-peers check-qemu check-rasdaemon lint matrix test:
	@$(MFR)/check/$@.sh

prefixes rangediff refresh series tree:
	@$(MFR)/series/$@.sh

machines:
	@$(MFR)/vm/machines.sh

tests-tar:
	@$(MFR)/hardware/tests-tar.sh

kernel:
	@$(MFR)/vm/packages.sh
	@$(MFR)/vm/kernel.sh $(WHICH)

boot:
	@$(MFR)/vm/prepare.sh $(WHICH)
	@$(MFR)/vm/boot.sh $(WHICH) $(or $(MACHINE),shell) ''

clean:
	rm -rf $(O)

.PHONY: help run bench check check-all check-debian check-fresh check-peers check-qemu \
	check-rasdaemon lint matrix test prefixes rangediff refresh series tree machines \
	tests-tar kernel boot clean
