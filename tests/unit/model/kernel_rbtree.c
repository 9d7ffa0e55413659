/* The kernel's own red-black tree, kept as kvm_main.c keeps slots by gfn: "put NUMBER GFN" and
 * "erase NUMBER" on standard input; after each the nodes in order, on one line. */
#include <linux/rbtree.h>
#include <stdio.h>
#include <stdlib.h>

struct slot {
    struct rb_node node;
    int number;
    unsigned long gfn;
    int there;
};

static struct slot slots[64];
static struct rb_root root = RB_ROOT;

static void insert(struct slot *slot)
{
    struct rb_node **at = &root.rb_node, *parent = NULL;

    while (*at) {
        parent = *at;
        at = slot->gfn < rb_entry(parent, struct slot, node)->gfn ? &parent->rb_left
                                                                 : &parent->rb_right;
    }
    rb_link_node(&slot->node, parent, at);
    rb_insert_color(&slot->node, &root);
    slot->there = 1;
}

static int number_of(const struct rb_node *node)
{
    return node ? rb_entry(node, struct slot, node)->number : -1;
}

int main(void)
{
    char word[8];
    int number;

    while (scanf("%7s %d", word, &number) == 2) {
        struct slot *slot = &slots[number];

        slot->number = number;
        if (slot->there)
            rb_erase(&slot->node, &root);
        slot->there = 0;
        if (word[0] == 'p') {
            if (scanf("%lu", &slot->gfn) != 1)
                return 2;
            insert(slot);
        }
        for (struct rb_node *node = rb_first(&root); node; node = rb_next(node))
            printf("%d:%d:%d:%d:%d ", number_of(node), number_of(rb_parent(node)),
                   number_of(node->rb_left), number_of(node->rb_right),
                   (int)(node->__rb_parent_color & 1));
        printf("\n");
    }
    return 0;
}
