/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __MM_HUGETLB_HWPOISON_H
#define __MM_HUGETLB_HWPOISON_H

#include <linux/hugetlb_hwpoison.h>
#include <linux/rbtree_types.h>

#if defined(CONFIG_HUGETLB_PAGE) && defined(CONFIG_MEMORY_FAILURE)

int hugetlb_hwpoison_add(struct folio *folio, struct page *page);
void hugetlb_hwpoison_unmark(struct folio *folio);
struct rb_root hugetlb_hwpoison_detach(struct folio *folio);
unsigned long hugetlb_hwpoison_pop(struct rb_root *record);

/**
 * hugetlb_hwpoison_any() - check a former hugetlb folio for lost raw pages
 * @folio: the folio, after hugetlb_hwpoison_unmark() if it had PG_hwpoison
 *
 * Context: any; the caller is freeing @folio.
 * Return: true if some raw pages of @folio are lost.
 */
static inline bool hugetlb_hwpoison_any(const struct folio *folio)
{
	return folio->_hugetlb_hwpoison || folio_test_hwpoison(folio);
}

#else

static inline int hugetlb_hwpoison_add(struct folio *folio, struct page *page)
{
	return 0;
}

static inline void hugetlb_hwpoison_unmark(struct folio *folio)
{
}

static inline bool hugetlb_hwpoison_any(const struct folio *folio)
{
	return false;
}

#endif

#endif /* __MM_HUGETLB_HWPOISON_H */
