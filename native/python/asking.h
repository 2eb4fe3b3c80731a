/* What module.c needs of asking.c. */

#ifndef SHMSERVE_ASKING_H
#define SHMSERVE_ASKING_H

/* Once, before the first of its type is made; -1 with an exception. */
int asking_names(void);

#endif
