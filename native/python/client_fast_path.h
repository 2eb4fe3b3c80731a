/* What module.c needs of client_fast_path.c. */

#ifndef SHMSERVE_CLIENT_FAST_PATH_H
#define SHMSERVE_CLIENT_FAST_PATH_H

/* Once, before the first of its type is made; -1 with an exception. */
int client_path_names(void);

#endif
