# SPDX-License-Identifier: GPL-2.0
# The pictures of bench.sh's report, from NAME.data with lines of x, stock, patched
set terminal svg size 560,330 font "sans-serif,12" background "white"
set datafile missing "-"
set key bottom left
set grid ytics
set ylabel "instructions"
set style line 1 lc rgb "#cc3311" lw 2 pt 7 ps 0.5
set style line 2 lc rgb "#0077bb" lw 2 pt 7 ps 0.5
set style line 3 lc rgb "#009988" lw 2 pt 7 ps 0.5
set style line 4 lc rgb "#ee7733" lw 2 pt 7 ps 0.5

# A logarithm has no place for 0.
place(x) = x > 0 ? x : 0.3
set logscale x
set xrange [0.2:20000]
set xtics ("0" 0.3, "1" 1, "10" 10, "100" 100, "1000" 1000, "10 000" 10000)

set yrange [0:*]
set xlabel "the k-th lost page of 1 GiB"
set title "From an error to the signal handler"
set output "1-signal.svg"
plot "signal.data" using 1:2 with points ls 1 ps 1.2 title "stock: once, then all is gone", \
     "" using 1:3 with linespoints ls 2 title "patched"

set xlabel "lost pages of 1 GiB"
set title "Fault of the hugepage in another process"
set output "2-fault.svg"
plot "lossy_fault.data" using (place($1)):2 with points ls 1 ps 1.2 title "stock: only without lost pages", \
     "" using (place($1)):3 with linespoints ls 2 title "patched"

set title "Read of 4 KiB beside lost pages"
set output "3-read.svg"
set logscale y
set yrange [100:*]
set format y "%.0s %c"
plot "lossy_read_4K.data" using (place($1)):2 with linespoints ls 1 title "stock", \
     "" using (place($1)):3 with linespoints ls 2 title "patched"

unset logscale y
set yrange [0:*]
set title "Release of 1 GiB"
set output "4-release.svg"
plot "release.data" using (place($1)):2 with points ls 1 ps 1.2 title "stock: only without lost pages", \
     "" using (place($1)):3 with linespoints ls 2 title "patched"

set format y "%g"
set xlabel "GiB mapped"
set xrange [1:64]
set xtics (1, 4, 16, 64)
set title "A lost page consumed again"
set output "5-repeat.svg"
plot "repeat.data" using 1:3 with linespoints ls 2 title "patched (stock: nobody has it any more)"

set logscale y
set yrange [10000:1e8]
set format y "%.0s %c"
set key top left Left reverse
set xlabel "mappings, of 1 GiB each"
set title "From an error to the signal handler"
set output "6-mapped.svg"
plot "1G_shared_error.data" using 1:3 with linespoints ls 2 title "without a guest", \
     "guest_2M_shared_error.data" using 1:3 with linespoints ls 3 \
	title "a guest, hugepages of 2 MiB", \
     "guest_1G_shared_error.data" using 1:3 with linespoints ls 4 \
	title "a guest, hugepages of 1 GiB"
