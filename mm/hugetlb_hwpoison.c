// SPDX-License-Identifier: GPL-2.0
/*
 * Hugetlb folios with lost raw pages
 *
 * An uncorrected memory error poisons one raw page of a hugetlb folio: the page
 * is lost, the others are healthy. Its struct page can't say so: with the
 * vmemmap optimization most tail struct pages don't exist. Instead PG_hwpoison
 * of the head page says that some raw page is lost, and an rbtree at
 * folio->_hugetlb_hwpoison, ordered by the index in the folio, says which. A
 * folio without lost raw pages has an empty tree.
 *
 *   folio->_hugetlb_hwpoison
 *            |
 *          [ 511 ]
 *          /     \
 *       [ 0 ]  [ 262143 ]
 *
 * Entries are added one by one, and the tree is detached as a whole, both under
 * hugetlb_lock. raw_hwp_lock nests in it and protects lookups in the trees of
 * all folios from these changes. It is a raw lock so that lost raw pages can be
 * looked up with preemption disabled, also on PREEMPT_RT.
 *
 * When there is no memory for an entry, HPG_raw_hwp_unreliable says that the
 * record is incomplete. From then on each raw page of the folio counts as lost.
 * The entries that exist stay.
 *
 * An error is forgotten if it hits a hugepage that is just being made, while
 * hugetlb_vmemmap_optimize_folio() copies the struct pages that hold the root of
 * the tree. Such a hugepage has no contents yet.
 */

#include <linux/export.h>
#include <linux/kmemleak.h>
#include <linux/rbtree.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#include "hugetlb_hwpoison.h"

struct raw_hwp_page {
	struct rb_node node;
	unsigned long idx;
};

static DEFINE_RAW_SPINLOCK(raw_hwp_lock);

static struct rb_root *raw_hwp_root(struct folio *folio)
{
	BUILD_BUG_ON(sizeof(struct rb_root) !=
		     sizeof(folio->_hugetlb_hwpoison));

	return (struct rb_root *)&folio->_hugetlb_hwpoison;
}

/**
 * hugetlb_hwpoison_add() - record that a raw page of a hugetlb folio is lost
 * @folio: the hugetlb folio
 * @page: its raw page that has an uncorrected memory error
 *
 * Doesn't set PG_hwpoison of @folio; that is up to the caller.
 *
 * Context: the caller holds hugetlb_lock, and has seen under it that @folio
 * is a hugetlb folio. Takes and releases raw_hwp_lock.
 * Return: 0 if @page was not known as lost before, -EEXIST if it was, -ENOMEM
 * if it could not be recorded. In that case the record is no longer complete
 * and HPG_raw_hwp_unreliable is set.
 */
int hugetlb_hwpoison_add(struct folio *folio, struct page *page)
{
	struct rb_root *root = raw_hwp_root(folio);
	unsigned long idx = folio_page_idx(folio, page);
	struct rb_node **link = &root->rb_node, *parent = NULL;
	struct raw_hwp_page *new;

	lockdep_assert_held(&hugetlb_lock);

	while (*link) {
		struct raw_hwp_page *p;

		parent = *link;
		p = rb_entry(parent, struct raw_hwp_page, node);
		if (idx == p->idx)
			return -EEXIST;
		link = idx < p->idx ? &parent->rb_left : &parent->rb_right;
	}

	new = kmalloc_obj(*new, GFP_ATOMIC);
	if (!new) {
		folio_set_hugetlb_raw_hwp_unreliable(folio);
		return -ENOMEM;
	}
	new->idx = idx;
	/* kmemleak doesn't look for references in struct pages of tail pages. */
	kmemleak_not_leak(new);

	guard(raw_spinlock_irqsave)(&raw_hwp_lock);
	rb_link_node(&new->node, parent, link);
	rb_insert_color(&new->node, root);
	return 0;
}

/* Find the first lost raw page at or after @idx, ULONG_MAX if there is none. */
static unsigned long raw_hwp_find(const struct rb_root *root, unsigned long idx)
{
	struct rb_node *node = root->rb_node;
	unsigned long next = ULONG_MAX;

	while (node) {
		struct raw_hwp_page *p;

		p = rb_entry(node, struct raw_hwp_page, node);
		if (p->idx < idx) {
			node = node->rb_right;
		} else {
			next = p->idx;
			node = node->rb_left;
		}
	}
	return next;
}

/**
 * hugetlb_hwpoison_next() - find the next lost raw page of a hugetlb folio
 * @folio: the hugetlb folio
 * @idx: index in @folio to begin at
 *
 * Context: any but NMI. Takes and releases raw_hwp_lock. The caller holds a
 * reference to @folio, or is freeing it.
 * Return: the index of the first lost raw page at or after @idx, the number
 * of pages in @folio if there is none.
 */
unsigned long hugetlb_hwpoison_next(struct folio *folio, unsigned long idx)
{
	const unsigned long nr = folio_nr_pages(folio);
	unsigned long next;

	if (!folio_test_hwpoison(folio))
		return nr;
	if (folio_test_hugetlb_raw_hwp_unreliable(folio))
		return idx;

	guard(raw_spinlock_irqsave)(&raw_hwp_lock);
	next = raw_hwp_find(raw_hwp_root(folio), idx);
	return min(next, nr);
}

/* See hugetlb_hwpoison_range(); @folio has PG_hwpoison. */
bool __hugetlb_hwpoison_range(struct folio *folio, unsigned long idx,
			      unsigned long nr)
{
	return folio_test_hugetlb(folio) &&
	       hugetlb_hwpoison_next(folio, idx) - idx < nr;
}
EXPORT_SYMBOL_FOR_MODULES(__hugetlb_hwpoison_range, "kvm,iommufd");

/**
 * hugetlb_hwpoison_unmark() - clear the folio-wide PG_hwpoison
 * @folio: folio with PG_hwpoison that has just ceased to be a hugetlb folio
 *
 * PG_hwpoison of the head page of a hugetlb folio says that some raw pages are
 * lost; of any other folio it says that the first page is lost. If not all lost
 * pages are recorded, the folio counts as lost as a whole and keeps the flag.
 *
 * Context: the caller holds hugetlb_lock, has cleared the hugetlb flag of @folio
 * under it, and is going to free @folio.
 */
void hugetlb_hwpoison_unmark(struct folio *folio)
{
	lockdep_assert_held(&hugetlb_lock);

	/* Without a record the flag is about the first raw page only. */
	if (!RB_EMPTY_ROOT(raw_hwp_root(folio)) &&
	    !folio_test_hugetlb_raw_hwp_unreliable(folio))
		folio_clear_hwpoison(folio);
}

/**
 * hugetlb_hwpoison_detach() - detach the record of lost raw pages from a folio
 * @folio: the hugetlb folio
 *
 * Call this for a folio that is freed, or whose errors are forgotten. The caller
 * empties the record with hugetlb_hwpoison_pop().
 *
 * Doesn't clear PG_hwpoison of @folio; that is up to the caller.
 *
 * Context: the caller holds hugetlb_lock. Takes and releases raw_hwp_lock.
 * Return: the record.
 */
struct rb_root hugetlb_hwpoison_detach(struct folio *folio)
{
	struct rb_root *root = raw_hwp_root(folio), record;

	lockdep_assert_held(&hugetlb_lock);

	guard(raw_spinlock_irqsave)(&raw_hwp_lock);
	record = *root;
	*root = RB_ROOT;
	return record;
}

/**
 * hugetlb_hwpoison_pop() - take the first lost raw page out of a record
 * @record: a record that hugetlb_hwpoison_detach() returned
 *
 * Context: any but NMI. The caller is the only user of @record.
 * Return: the index of the raw page in its folio, ULONG_MAX if @record is empty.
 */
unsigned long hugetlb_hwpoison_pop(struct rb_root *record)
{
	struct rb_node *node = rb_first(record);
	struct raw_hwp_page *p;
	unsigned long idx;

	if (!node)
		return ULONG_MAX;

	p = rb_entry(node, struct raw_hwp_page, node);
	idx = p->idx;
	rb_erase(node, record);
	kfree(p);
	return idx;
}
