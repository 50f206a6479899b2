# SPDX-License-Identifier: GPL-2.0
# The pictures of bench.sh's report, from NAME.data with lines of x, stock, patched
set terminal svg size 560,330 font "sans-serif,12" background "white"
set datafile missing "-"
set key top left
set grid ytics
set format y "%.0s %c"
set ylabel "instructions"
set style line 1 lc rgb "#cc3311" lw 2 pt 7 ps 0.5
set style line 2 lc rgb "#0077bb" lw 2 pt 7 ps 0.5

set logscale x
set yrange [0:*]
set xlabel "the k-th lost page of 1 GiB"
set title "From an error to the signal handler"
set output "1-signal.svg"
plot "signal.data" using 1:2 with points ls 1 ps 1.2 title "stock: once, then all is gone", \
     "" using 1:3 with linespoints ls 2 title "patched"

set xlabel "lost pages of 1 GiB"
set title "Fault of a healthy page in another process"
set output "2-fault.svg"
plot "kept_fault.data" using ($1 + 1):2 with points ls 1 ps 1.2 title "stock: only without lost pages", \
     "" using ($1 + 1):3 with linespoints ls 2 title "patched"

set title "Release of 1 GiB"
set output "3-release.svg"
plot "release.data" using ($1 + 1):2 with points ls 1 ps 1.2 title "stock: only without lost pages", \
     "" using ($1 + 1):3 with linespoints ls 2 title "patched"

set logscale y
set yrange [500:*]
set title "Read of 4 KiB without lost pages"
set output "4-read.svg"
plot "kept_read_4K.data" using ($1 + 1):2 with linespoints ls 1 title "stock", \
     "" using ($1 + 1):3 with linespoints ls 2 title "patched"
unset logscale y

set yrange [0:*]
set xlabel "GiB mapped"
set logscale x 2
set title "A lost page consumed again"
set output "5-repeat.svg"
plot "repeat.data" using 1:3 with linespoints ls 2 title "patched"
