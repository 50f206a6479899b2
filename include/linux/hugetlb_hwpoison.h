/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_HUGETLB_HWPOISON_H
#define _LINUX_HUGETLB_HWPOISON_H

#include <linux/hugetlb.h>

#if defined(CONFIG_HUGETLB_PAGE) && defined(CONFIG_MEMORY_FAILURE)

unsigned long hugetlb_hwpoison_next(struct folio *folio, unsigned long idx);

bool __hugetlb_hwpoison_range(struct folio *folio, unsigned long idx,
			      unsigned long nr);

#else

static inline bool __hugetlb_hwpoison_range(struct folio *folio,
					    unsigned long idx, unsigned long nr)
{
	return false;
}

static inline unsigned long hugetlb_hwpoison_next(struct folio *folio,
						  unsigned long idx)
{
	return folio_nr_pages(folio);
}

#endif

/**
 * hugetlb_hwpoison_healthy() - count the healthy bytes before a lost raw page
 * @folio: the hugetlb folio; the caller holds a reference
 * @offset: byte offset in @folio
 * @len: number of bytes wanted, not beyond the end of @folio
 *
 * Context: any but NMI. Takes and releases raw_hwp_lock if @folio has PG_hwpoison.
 * Return: how many of the @len bytes at @offset come before the next lost raw
 * page; zero if @offset is in a lost one.
 */
static inline size_t hugetlb_hwpoison_healthy(struct folio *folio,
					      size_t offset, size_t len)
{
	unsigned long next;

	if (likely(!folio_test_hwpoison(folio)))
		return len;

	next = hugetlb_hwpoison_next(folio, offset >> PAGE_SHIFT);
	if (next == offset >> PAGE_SHIFT)
		return 0;
	return min(len, (next << PAGE_SHIFT) - offset);
}

/**
 * hugetlb_hwpoison_range() - test a range of a folio for lost raw pages
 * @folio: the folio, of any kind; the caller holds a reference, or keeps it
 * mapped
 * @idx: index in @folio of the first page to ask about
 * @nr: number of pages to ask about
 *
 * Callers check pages with this before they use or map them: a folio may stay
 * in use although some of its raw pages are lost.
 *
 * Context: any but NMI. Takes and releases raw_hwp_lock if @folio has PG_hwpoison.
 * Return: true if @folio is a hugetlb folio and one of the pages is lost.
 */
static inline bool hugetlb_hwpoison_range(struct folio *folio,
					  unsigned long idx, unsigned long nr)
{
	return unlikely(folio_test_hwpoison(folio)) &&
	       __hugetlb_hwpoison_range(folio, idx, nr);
}

#endif /* _LINUX_HUGETLB_HWPOISON_H */
