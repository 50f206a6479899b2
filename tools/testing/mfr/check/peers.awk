# SPDX-License-Identifier: GPL-2.0
# Judge the samples of check-peers.sh: lines
#	SUITE<TAB>TEST<TAB>CASE<TAB>ROUND<TAB>KERNEL<TAB>pass|fail|skip
# Prints for each case whether the two kernels are alike, apart, or neither (open), with the
# results of round 0, and how often there was which, if that differs:
#	STATE<TAB>SUITE<TAB>TEST<TAB>CASE<TAB>STOCK<TAB>PATCHED<TAB>WHY
#
# They are apart if no kind of result is common to both after five more times, or if chance
# would explain the results in one of 500 cases only (Fisher's exact test of one kind against
# all others; round 0 does not count there, for it decides what runs again). They are alike
# if each has shown all kinds of results that the other one has.

{
	k = $1 "\t" $2 "\t" $3
	if (!(k in known)) {
		known[k] = 1
		order[++cases] = k
	}
	if ($4 == 0)
		first[k, $5] = $6
	if ($4 > rounds)
		rounds = $4
	n = ++nr[k, $4, $5]
	if (n > times[$1, $2, $4])
		times[$1, $2, $4] = n
	seen[k, $5, $6]++
	if ($4 > 0) {
		later[k, $5, $6]++
		nr_later[k, $5]++
	}
}

# A case has no result if the test has ended early, which it may do now and then.
function fill(k,	i, kernel, n, part) {
	split(k, part, "\t")
	for (i = 0; i <= rounds; i++)
		for (kernel = 1; kernel <= 2; kernel++) {
			n = times[part[1], part[2], i] - nr[k, i, name[kernel]]
			if (n <= 0)
				continue
			seen[k, name[kernel], "missing"] += n
			if (i > 0) {
				later[k, name[kernel], "missing"] += n
				nr_later[k, name[kernel]] += n
			}
		}
}

function log_factorial(n,	i, sum) {
	for (i = 2; i <= n; i++)
		sum += log(i)
	return sum + 0
}

# How probable a of n and b of m are, if a + b of n + m are given
function probability(a, n, b, m) {
	return exp(log_factorial(n) + log_factorial(m) + log_factorial(a + b) + \
		   log_factorial(n + m - a - b) - log_factorial(n + m) - log_factorial(a) - \
		   log_factorial(n - a) - log_factorial(b) - log_factorial(m - b))
}

function chance(a, n, b, m,	i, p, this, sum) {
	this = probability(a, n, b, m)
	for (i = 0; i <= n; i++) {
		if (a + b - i < 0 || a + b - i > m)
			continue
		p = probability(i, n, a + b - i, m)
		if (p <= this * 1.000001)
			sum += p
	}
	return sum
}

function counts(k, kernel,	i, text) {
	for (i = 1; i <= kinds; i++)
		if (seen[k, kernel, kind[i]])
			text = text " " seen[k, kernel, kind[i]] " " kind[i]
	return text
}

function state_of(k,	i, s, p, differ, common) {
	for (i = 1; i <= kinds; i++) {
		s = seen[k, "stock", kind[i]] > 0
		p = seen[k, "patched", kind[i]] > 0
		if (s != p)
			differ = 1
		if (s && p)
			common = 1
		if (nr_later[k, "stock"] && nr_later[k, "patched"] &&
		    chance(later[k, "stock", kind[i]] + 0, nr_later[k, "stock"],
			   later[k, "patched", kind[i]] + 0, nr_later[k, "patched"]) < 0.002)
			return "apart"
	}
	if (!common && nr_later[k, "stock"] >= 5 && nr_later[k, "patched"] >= 5)
		return "apart"
	return differ ? "open" : "alike"
}

END {
	name[1] = "stock"
	name[2] = "patched"
	kinds = split("pass fail skip missing", kind, " ")
	for (i = 1; i <= cases; i++) {
		k = order[i]
		fill(k)
		state = state_of(k)
		stock = (k, "stock") in first ? first[k, "stock"] : "missing"
		patched = (k, "patched") in first ? first[k, "patched"] : "missing"
		why = "stock:" counts(k, "stock") ", patched:" counts(k, "patched")
		if (state == "alike")
			why = counts(k, "stock") ~ / .* .* / ? "now and then on both: " why : ""
		else if (state == "apart")
			why = "DIFFERS, " why
		else
			why = "not decided, " why
		print state "\t" k "\t" stock "\t" patched "\t" why
	}
}
