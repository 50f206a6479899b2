# SPDX-License-Identifier: GPL-2.0
# Copy what make says to the file log_file, and show how many objects it has built of about
# as many as -v total=N
{ print > log_file; fflush(log_file) }
/^  (CC|AS|LD|AR|HOSTCC) / {
	n++
	if (n % (tty ? 10 : 250) == 0) {
		printf "%s        %s: %d of about %d objects%s",
		       tty ? "\r" : "", what, n, total, tty ? "" : "\n"
		fflush()
	}
}
END { if (tty && n >= 10) printf "\r%60s\r", "" }
